"""The skin: everything that turns a base into one product feature, as one set of files."""
