"""Small trained parts that change a frozen base: low-rank updates and heads, and their files."""
