"""The sweep's folder: locks, archives, object stores."""
