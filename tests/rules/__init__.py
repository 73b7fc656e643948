"""A package, so that its files may have the names of the rules although other tests have them too."""
