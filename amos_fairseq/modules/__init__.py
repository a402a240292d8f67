"""Parameters shared by the methods: encoder, heads and their parts."""
