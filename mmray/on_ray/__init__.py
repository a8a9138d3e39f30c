"""Everything that imports Ray. Its environment is set by `mmray.on_ray.runtime` before the first import of it."""
