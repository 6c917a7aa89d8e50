"""The kernel classes, one module for each kind of layer."""
