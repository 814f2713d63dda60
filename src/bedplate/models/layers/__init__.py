"""The parts that architectures are composed of. No family's name appears here."""
