"""How good a result is: metrics, the protocol they are taken by, and sheets of pictures that show it."""
