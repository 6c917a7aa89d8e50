"""Floor 1: facts about number types, scales and machines. Imports nothing else of qcore."""
