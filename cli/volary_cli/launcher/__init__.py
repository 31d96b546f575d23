"""The supervisor of a mesh on one machine, and the engines that it embeds."""
