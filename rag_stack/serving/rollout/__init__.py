"""A new release takes an old one's place, replica by replica, and goes back when a gate fails."""
