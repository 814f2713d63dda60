"""Small trained parts that change a frozen base: low-rank updates, heads and soft prompts, and their files."""
