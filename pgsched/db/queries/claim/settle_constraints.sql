-- Checks deferred constraints and triggers now, while it is known which row they refuse.
set constraints all immediate
