"""Reports: their schema, and one look for all pages and plots."""
