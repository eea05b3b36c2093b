"""The web page: a client of OpenAI-compatible servers, in which people talk to models, compare two without their names, and save rows."""
