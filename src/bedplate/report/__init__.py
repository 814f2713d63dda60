"""One look for every report: self-contained pages and their plots."""
