"""Where models come from: paths, the catalogue, the hub, the package index, and the cache they are kept in."""
