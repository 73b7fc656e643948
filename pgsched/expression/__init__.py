"""From a text and a time zone to fire times. Pure: no module here knows a database or reads a clock."""
