"""What a run would take, reckoned before it starts: seconds, memory, disk, downloads. Nothing is loaded or fetched."""
