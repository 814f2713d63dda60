"""How an exported head answers, in numpy alone: files that `bedplate skins export` writes beside the weights as they
are here. They import nothing of Bedplate."""
