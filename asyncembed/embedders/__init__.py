"""The public classes, a module for each family; `base` is what they share."""
