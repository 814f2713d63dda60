"""Who pays what: amortisation, usage, and decisions between options."""
