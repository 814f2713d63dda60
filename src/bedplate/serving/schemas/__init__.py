"""What requests may say: fields, formats, errors. No state."""
