"""Downloads of bases and data: a catalogue pinned by hash, the package index, the Hugging Face Hub, local paths."""
