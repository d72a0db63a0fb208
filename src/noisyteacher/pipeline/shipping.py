def ship(*a, **k):
    raise NotImplementedError
