-- An application whose triggers refuse in every way, write elsewhere, and change
-- what is written.

CREATE TABLE audit (id INTEGER PRIMARY KEY, edit, what TEXT);
CREATE TRIGGER tight_in BEFORE INSERT ON tight BEGIN
  SELECT CASE NEW.name WHEN 'rollback' THEN RAISE (ROLLBACK, 'no such table') WHEN 'abort' THEN RAISE (ABORT, 'malformed name')
    WHEN 'fail' THEN RAISE (FAIL, 'the database is locked') WHEN 'ignore' THEN RAISE (IGNORE) END;
END;
CREATE TRIGGER tight_change BEFORE UPDATE OF name ON tight BEGIN
  SELECT CASE NEW.name WHEN 'rollback' THEN RAISE (ROLLBACK, 'interrupted') WHEN 'abort' THEN RAISE (ABORT, 'disk I/O error')
    WHEN 'fail' THEN RAISE (FAIL, 'no such column') WHEN 'ignore' THEN RAISE (IGNORE) END;
END;
CREATE TRIGGER tight_audit AFTER INSERT ON tight BEGIN INSERT INTO audit (what) VALUES (NEW.name); END;
CREATE TRIGGER leaf_count AFTER INSERT ON leaf BEGIN UPDATE tight SET amount = amount + 1 WHERE id = NEW.tight; END;
CREATE TRIGGER loose_stamp AFTER UPDATE OF t ON loose BEGIN UPDATE loose SET d = 'changed' WHERE id = NEW.id; END;
CREATE TRIGGER person_out AFTER DELETE ON person BEGIN DELETE FROM house WHERE v = OLD.v; END;
CREATE TRIGGER node_keep BEFORE DELETE ON node WHEN OLD.v IN ('abort', 'ignore') BEGIN
  SELECT CASE OLD.v WHEN 'abort' THEN RAISE (ABORT, 'this one stays') ELSE RAISE (IGNORE) END;
END;
CREATE TRIGGER house_keep BEFORE DELETE ON house WHEN OLD.v = 'rollback' BEGIN SELECT RAISE (ROLLBACK, 'this one stays'); END;
CREATE TRIGGER person_in BEFORE INSERT ON person WHEN NEW.v = 'rollback' BEGIN SELECT RAISE (ROLLBACK, 'not this one'); END;
CREATE TRIGGER leaf_in BEFORE INSERT ON leaf WHEN NEW.v IN (1, 2, 3) BEGIN
  SELECT CASE NEW.v WHEN 1 THEN RAISE (ROLLBACK, 'not this one') WHEN 2 THEN RAISE (ABORT, 'not this one') ELSE RAISE (IGNORE) END;
END;
CREATE TRIGGER leaf_moves BEFORE UPDATE OF tight, node ON leaf WHEN OLD.v = 41 BEGIN SELECT RAISE (ABORT, 'this one stays where it is'); END;
