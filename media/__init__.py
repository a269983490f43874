"""RTP media: the worker process that carries audio and the client that steers it."""
