"""What a trained scene holds, as geometry in world units: points and meshes, and the files they go into."""
