"""The kernel classes, a module for each kernel type."""
