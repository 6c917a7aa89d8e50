"""The kernel classes, a module for each family."""
