"""Numbers of images and of sets of images, each with its source."""
