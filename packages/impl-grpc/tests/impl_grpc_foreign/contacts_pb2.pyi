from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Contact(_message.Message):
    __slots__ = ["full_name", "age", "email", "phones"]
    FULL_NAME_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    PHONES_FIELD_NUMBER: _ClassVar[int]
    full_name: str
    age: int
    email: str
    phones: _containers.RepeatedCompositeFieldContainer[Phone]
    def __init__(self, full_name: _Optional[str] = ..., age: _Optional[int] = ..., email: _Optional[str] = ..., phones: _Optional[_Iterable[_Union[Phone, _Mapping]]] = ...) -> None: ...

class Phone(_message.Message):
    __slots__ = ["number"]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: str
    def __init__(self, number: _Optional[str] = ...) -> None: ...

class Created(_message.Message):
    __slots__ = ["id", "count", "repeated_call"]
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    REPEATED_CALL_FIELD_NUMBER: _ClassVar[int]
    id: str
    count: int
    repeated_call: bool
    def __init__(self, id: _Optional[str] = ..., count: _Optional[int] = ..., repeated_call: bool = ...) -> None: ...
