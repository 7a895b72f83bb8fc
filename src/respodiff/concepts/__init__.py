"""What to steer towards: concepts, attributes, intersections of attributes, and how their prompts are written."""
