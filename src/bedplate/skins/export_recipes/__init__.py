"""How an exported head answers, in numpy alone: `bedplate skins export` writes states.py or words.py beside the
weights, with the functions of labels.py in it, so that it imports nothing of Bedplate."""
