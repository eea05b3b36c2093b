"""What is done with a model besides training it: talking to it, evaluating it, reporting on its run."""
