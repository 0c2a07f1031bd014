-- Dead letters as the first version of the bookkeeping stored them: a document that did
-- not fit, with a value of every kind, and one whose payload nobody can read.
INSERT INTO tidemark_dead_letters (tableName, documentId, handler, payload, metadata, class, reason, attempts, firstOn, lastOn, state, updatedOn) VALUES
('note', '00112233445566778899aabbccddeeff', 'download',
 '{"v":1,"id":"00112233445566778899aabbccddeeff","createdOn":1700000000000,"updatedOn":1700000000500,"updatedBy":"ffffffffffffffffffffffffffffffff","uploadedOn":1700000000600,"stamp":"ffffffffffffffffffffffffffffffff.0000000000000007","updateTime":1700000000600123,"fields":{"id":7,"title":"old","body":{"bytes":"AP8="},"rank":0.1,"big":9223372036854775807,"none":null}}',
 '{}', 'rejected', 'too odd', 3, 1700000000700, 1700000000900, 'dead', 1700000000600123),
('note', '00112233445566778899aabbccddee00', 'download', '{"v":99,"id":"x"}', '{}', 'rejected', 'too odd', 1, 1700000000700, 1700000000900, 'dead', 0);
