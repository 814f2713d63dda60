"""The ladder: every way to adapt a base that fits, measured, and one verdict under a statistical gate."""
