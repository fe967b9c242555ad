"""Many settings at once: which points there are, how one is worked on, and what all of them come to."""
