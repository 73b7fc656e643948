-- Forgets the declarations of an application that another one has taken over: none is in force any more.
delete from pgsched.declarations where app = %(app)s
