"""What leaves the house: versions, published to a hub repository once they are proved. No run depends on it."""
