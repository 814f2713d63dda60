"""Which mixture of a corpus's sources is best: small runs over mixtures, a response fitted to them, its best."""
