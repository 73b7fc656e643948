-- An application is another one's now: nothing of it is in force any more.
delete from pgsched.declarations where app = %(app)s
