-- Every shape of table and value that has broken something somewhere.

CREATE TABLE "order details ""x""" (            -- spaces, quotes, a reserved word
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  "select" TEXT COLLATE NOCASE UNIQUE,
  "it's" TEXT DEFAULT 'it''s',
  "数量" INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "order details ""x""" ("select", "it's", "数量") VALUES ('Home', NULL, 1), ('', '', -1), (NULL, '🦀 emoji', 0);

CREATE TABLE "group" (name TEXT PRIMARY KEY, note) WITHOUT ROWID;
INSERT INTO "group" VALUES ('a', NULL), ('', ''), ('b''c"d', x'00ff');

CREATE TABLE "values" (                          -- what is hard to store exactly
  id INTEGER PRIMARY KEY,
  i INTEGER, r REAL, t TEXT, b BLOB, n NUMERIC, a
);
INSERT INTO "values" (id, i, r, t, b, n, a) VALUES
  (1, 9223372036854775807, 0.1, 'nul' || char(0) || 'inside', x'', 1.50, 1),
  (2, -9223372036854775808, 1e308, '', x'00', '007', 1.0),
  (3, NULL, NULL, NULL, NULL, NULL, NULL),
  (4, 0, 9007199254740993.0, '👩‍👩‍👧', x'deadbeef', 9007199254740993, 'text'),
  (5, 'not a number', -0.0, 42, 'text in a blob', 'n/a', x'c3'),
  (-7, 1, 5e-324, 'line' || char(10) || 'break', zeroblob(3000), 1e20, '');

CREATE TABLE strict_one (id INTEGER PRIMARY KEY, any_value ANY, amount REAL NOT NULL) STRICT;
INSERT INTO strict_one VALUES (1, '5', 2), (2, 5, 2.5), (3, x'05', 0);

CREATE TABLE person (                            -- self-reference, and half of a cycle
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  boss INTEGER REFERENCES person (id) ON DELETE SET NULL,
  home INTEGER REFERENCES house (id) DEFERRABLE INITIALLY DEFERRED,
  shout TEXT GENERATED ALWAYS AS (upper(name)) VIRTUAL,
  len INTEGER AS (length(name)) STORED
);
CREATE TABLE house (id INTEGER PRIMARY KEY, street TEXT, owner INTEGER REFERENCES person (id) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO person (id, name, boss, home) VALUES (1, 'Ada', NULL, 1), (2, 'Bob', 1, 1), (3, 'Cyd', 2, NULL);
INSERT INTO house VALUES (1, 'High Street', 1), (2, NULL, NULL);

CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE person_tag (                        -- many to many
  person_id INTEGER NOT NULL REFERENCES person ON DELETE CASCADE,
  tag_id INTEGER NOT NULL REFERENCES tag ON DELETE CASCADE,
  PRIMARY KEY (person_id, tag_id)
) WITHOUT ROWID;
INSERT INTO tag VALUES (1, 'home'), (2, 'work');
INSERT INTO person_tag VALUES (1, 1), (1, 2), (2, 1);

CREATE TABLE shelf (room TEXT, place INTEGER, title TEXT, PRIMARY KEY (room, place));
CREATE TABLE book (                              -- a composite foreign key
  isbn TEXT PRIMARY KEY NOT NULL,
  room TEXT, place INTEGER,
  FOREIGN KEY (room, place) REFERENCES shelf ON UPDATE CASCADE ON DELETE SET NULL
);
INSERT INTO shelf VALUES ('north', 1, 'N1'), ('north', 2, NULL);
INSERT INTO book VALUES ('978-0', 'north', 1), ('978-1', NULL, NULL), ('978-2', 'cellar', 9);  -- the last one dangles

CREATE TABLE logline (at REAL, line TEXT);       -- no key at all
INSERT INTO logline VALUES (0.5, 'same'), (0.5, 'same');

CREATE TABLE email (                             -- keys that are not plain columns
  id INTEGER PRIMARY KEY,
  address TEXT, owner INTEGER, gone INTEGER NOT NULL DEFAULT 0,
  domain TEXT AS (substr(address, instr(address, '@') + 1))
);
CREATE UNIQUE INDEX email_live ON email (owner, lower(address) COLLATE NOCASE DESC) WHERE gone = 0;
INSERT INTO email (address, owner, gone) VALUES ('A@x.org', 1, 0), ('a@x.org', 1, 1), ('b@x.org', 2, 0);

CREATE VIEW people AS SELECT name, shout FROM person;

CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, modified INTEGER);
CREATE VIRTUAL TABLE note_search USING fts5 (body, content='note', content_rowid='id');
CREATE TRIGGER note_in AFTER INSERT ON note BEGIN
  INSERT INTO note_search (rowid, body) VALUES (NEW.id, NEW.body);
END;
CREATE TRIGGER note_out AFTER DELETE ON note BEGIN
  INSERT INTO note_search (note_search, rowid, body) VALUES ('delete', OLD.id, OLD.body);
END;
CREATE TRIGGER note_change AFTER UPDATE ON note BEGIN
  INSERT INTO note_search (note_search, rowid, body) VALUES ('delete', OLD.id, OLD.body);
  INSERT INTO note_search (rowid, body) VALUES (NEW.id, NEW.body);
END;
CREATE TRIGGER note_modified AFTER UPDATE OF body ON note BEGIN
  UPDATE note SET modified = coalesce(modified, 0) + 1 WHERE id = NEW.id;
END;
INSERT INTO note (body) VALUES ('the quick brown fox'), ('jumps over');
