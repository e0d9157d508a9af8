INSERT INTO account VALUES (1, 0), (2, 0);
