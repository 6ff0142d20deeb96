"""Where Ray Serve lives: the engine application and the control applications, built from a release."""
