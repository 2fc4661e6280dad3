"""What `make dist` does: build the sdist and the wheel, check them, install the wheel elsewhere and use it there.

`built` builds and looks into the two files, `used` installs and uses them. `__main__` runs both, outside the ordinary
suite, as it takes minutes.
"""
