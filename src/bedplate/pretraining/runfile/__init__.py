"""What a run is, as data: the file, the dial that derives sizes, and what may change between resumptions."""
