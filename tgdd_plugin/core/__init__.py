"""What every other subpackage builds on; it imports none of them."""
