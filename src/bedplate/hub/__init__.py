"""Where bases and data come from: a catalogue pinned by hash, the package index, the Hugging Face Hub, local paths."""
