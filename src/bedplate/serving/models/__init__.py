"""Which bases and skins are served, and which are in memory."""
