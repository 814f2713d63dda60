"""Task rows with leak-free splits, and corpora to pretrain on."""
