"""What in an image an answer rests on: maps, where they lie, and how true they are."""
