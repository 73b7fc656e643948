"""From a claimed run to its recorded end."""
